"""The files of a run: its folder, its rows, the state in its checkpoints, and its environment."""
