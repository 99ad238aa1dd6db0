"""Generated problems, with the tokenizer and the model that a task trains, so that nothing is downloaded."""
