"""Sub-commands of the command line, a file each; the file's name is the command's."""
