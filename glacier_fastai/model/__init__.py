"""From channels to probabilities: networks, bundles, ensembles, their scores and calibration. Without fastai."""
