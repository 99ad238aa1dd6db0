"""Tasks, tokenizer and model that are made locally, so that the whole pipeline runs without a download."""
