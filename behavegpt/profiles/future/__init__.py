"""Members that are trained on what clients do after a cut: tasks of the future, and contrastive
pairs."""
