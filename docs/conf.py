"""The site that `make docs` builds, by Sphinx from the root of the repository: links lead where they lead on GitHub."""

import sasgd_fused

project = "sasgd_fused"
version = release = sasgd_fused.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    *("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md"),
    *("bench/results/cpu.md", "bench/results/others.md", "examples/README.md"),
]
exclude_patterns = [".*", "build", "dist", "runs"]
nitpicky = True
# Types of Python's and torch's: where they are documented is not looked up, the build needs no network.
nitpick_ignore_regex = [("py:.*", r"(?!sasgd_fused\.).*")]

# An indented block is an equation or a command; Python stands in fences that say so.
highlight_language = "none"
myst_heading_anchors = 3
# A name in a docstring is a link where it is a public one, and else code, as a name of an argument.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
maximum_signature_line_length = 100
python_display_short_literal_types = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"sasgd_fused {release}"
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["wide.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "to_start.html"}
