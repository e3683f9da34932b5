"""Labels of users by a fine-tuned model: settings.py, training (train.py), the run with its folds
(run.py), and the predictor (predictor.py)."""
