"""Language models: what is asked for, how far it has come, and the text that it becomes."""
