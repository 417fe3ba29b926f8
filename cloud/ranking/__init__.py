"""The stages that score candidates and sort them one by one: the multi-task ranker and the fusion of its probabilities."""
