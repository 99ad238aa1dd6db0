"""Tasks, tokenizer and model that are made locally, so that the whole pipeline runs without a download."""

# `dataset_name` and `model_name_or_path` with this prefix name a task of this package.
EMBEDDED = "embedded:"
