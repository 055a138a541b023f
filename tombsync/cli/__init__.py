"""The command line: one function per command; words, tables and exit codes live here."""
