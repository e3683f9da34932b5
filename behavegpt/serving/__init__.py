"""`behavegpt serve`: a trained model behind HTTP."""
