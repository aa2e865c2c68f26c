"""One TOML file to one frozen tree, with bounds, sentences, aliases and suggestions."""
