"""Data for problems: by name, from files of LIBSVM, or made."""
