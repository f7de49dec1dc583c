import torch

from glacier_fastai.train.console import class_table


def test_the_table_shows_scores_by_class_their_means_and_a_dash_where_undefined():
    matrix = torch.tensor([[50, 10, 0, 0], [5, 30, 5, 0], [0, 10, 40, 0], [0, 0, 0, 0]])
    assert class_table(matrix).splitlines() == [
        "Class          IoU    Prec  Recall      F1",
        "BG          0.7692  0.9091  0.8333  0.8696",
        "Glacier     0.5000  0.6000  0.7500  0.6667",
        "Debris      0.7273  0.8889  0.8000  0.8421",
        "Lake             -       -       -       -",
        "Mean        0.6655  0.7993  0.7944  0.7928",
    ]
