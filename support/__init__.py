"""What no reader of the article needs to open: the command line, files, the folder of a run, how Keras is run here."""
