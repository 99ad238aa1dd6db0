"""What `plan` works out, each part from a resolved recipe: the job itself, memory, operations, commands."""
