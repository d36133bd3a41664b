"""The study of one learning rate for every network: settings, methods, what is run, and what came out."""
