"""The study of one learning rate for every network: many settings, many methods, one run at a time."""
