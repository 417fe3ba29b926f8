"""How well the device model orders what is shown next, beside the server, published peers and the model with parts left out.

Run `python -m benchmarks.quality --data FILE.toml --train-to DATE --test-from DATE --json FILE`. All models learn from the
rows up to `--train-to`, and score the rows from `--test-from` on, each right before it was shown. Their inputs have the scores
that one full ranker gave a row before it learned that row. A file belongs here when it trains a model on a real log, scores the
test days with it, or reports these scores; peers that are networks are in `pocketrank.cloud.models.peers`. The report::

    models.NAME.TASK         auc, gauc, ndcg, logloss, each with its _std over seeds; ece, predicted_over_observed
    paired.NAME.TASK         mean, std over seeds of the AUC above that of `server_score_refreshed`
    aims.TASK                the aim of the split form; split: what it reached; met
    curves.events_since_request.BIN      rows; over_server_score, over_server_score_refreshed: the split form's gain, by task
    curves.events_known.BIN  the same by the number of events that the device knows
    curves.fresh_feedback.BIN            rows; over_boosted_trees@request: what boosted trees gain by events since the request
    curves.training_share.FORM.SHARE     auc, auc_std by task, after training on a share of the users
    data, seeds, fewer_seeds, seconds    the options, the models with fewer seeds, and the time it took

With `--tune` instead: `tuned.NAME`, the settings tried and the AUC by task of each on the last training days.
"""
