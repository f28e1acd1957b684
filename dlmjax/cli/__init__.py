"""The command line: one file a command, with its flags and what it prints. `main` parses, maps errors to exit codes and calls the rest."""
