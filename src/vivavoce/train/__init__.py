"""Training: one visible loop (:mod:`~vivavoce.train.loop`) that recipes fill."""
