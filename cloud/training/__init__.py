"""Training of the models of `pocketrank.cloud.models` on a log, the run that it writes, and the evaluation of a run.

`pocketrank.cloud.training.train.train` trains a run, and `pocketrank.cloud.training.run.Run` opens one. Nothing is imported
here: a server opens runs and has no torch.
"""
