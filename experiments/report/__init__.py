"""Reports: the files, tables and pictures that programs leave."""
