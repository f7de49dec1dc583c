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
        "Ice         0.8500  0.8947  0.9444  0.9189",
    ]


def test_ice_of_unknown_kind_counts_for_ice_alone():
    matrix = torch.tensor([[50, 10, 0, 0], [5, 30, 5, 0], [0, 10, 40, 0], [0, 0, 0, 0], [4, 3, 2, 1]])
    known, every = (class_table(m).splitlines() for m in (matrix[:4], matrix))
    assert known[:-1] == every[:-1]
    assert every[-1].split() == ["Ice", *(f"{v:.4f}" for v in (90 / 110, 90 / 100, 90 / 100, 180 / 200))]
