"""The command line. Row 5: may import everything below; each command's module is loaded only when it is called."""
