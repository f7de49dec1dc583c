import numpy as np
import pandas as pd

from glacier_fastai.plots.glaciers import area_change

SIZES = {"size": ["0.1-0.5", "all"], "glaciers": [2, 2], "rate_percent": [-1.0, -1.0]}
SIZES = pd.DataFrame({**SIZES, "rate_low_percent": [-2.0, -2.0], "rate_high_percent": [0.5, 0.5]})


def test_glaciers_and_size_classes_are_drawn_with_their_intervals():
    table = pd.DataFrame({
        "area_a_km2": [0.2, 0.3, 0.4], "change_percent": [-10, 2, np.nan], "low_percent": [-12, -5, np.nan],
        "high_percent": [-8, 9, np.nan], "beyond_noise": [True, False, False],
    })  # fmt: skip
    top, bottom = area_change(table, SIZES, "2000 to $2020$").axes
    assert [t.get_text() for t in top.get_legend().get_texts()] == ["within its noise (1)", "beyond its noise (1)"]
    assert [bar.get_height() for bar in bottom.patches] == [-1, -1]
    assert [t.get_text() for t in bottom.get_xticklabels()] == ["0.1-0.5\n2", "all\n2"]


def test_without_any_glacier_it_is_empty():
    columns = ["area_a_km2", "change_percent", "low_percent", "high_percent", "beyond_noise"]
    area_change(pd.DataFrame({c: np.empty(0) for c in columns}), SIZES[:0]).canvas.draw()
