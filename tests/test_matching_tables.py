"""The tables of misc/matching.md: which run ends in which cell, and what is computed from it."""


import pytest

from misc.report.results import Results, Run
from misc.report.section import Section
from misc.report.tables import protocols, storage, storage_points

CONFIG = {"epochs": 60, "stem": "imagenet", "input_size": 32, "mix_type": "cutmix", "min_scale_crops": 0.6, "flip": 0.0,
          "batch_size": 50, "temperature": 20.0, "lr_schedule": "cosine", "adamw_lr": 0.001, "arch": "resnet18"}


def student(name: str, accuracy: float, steps: int = 60) -> Run:
    return Run(name, "student", CONFIG, {"test_accuracy": accuracy, "steps": steps}, {"train": 7.0})


def labels(name: str, stored_bytes: int, logits: int, epochs: int) -> Run:
    return Run(name, "soft_labels", {}, {"bytes": stored_bytes, "stored_epochs": epochs, "epochs": 60, "stored_logits": logits,
                                         "classes": 10, "views": 100 * epochs}, {})


def row_of(made: list[Section], *words: str) -> list[str]:
    (section,) = made
    rows = map(list, (section.header, *section.rows))
    return next(row for row in rows if all(any(word in cell for cell in row) for word in words))


@pytest.fixture
def result() -> Results:
    runs = [Run("teacher", "teacher", CONFIG, {"test_accuracy": 0.975}, {})]
    for seed, add in ((0, 0.0), (1, 0.02)):
        runs += [student(f"seed{seed}/students/protocols/distilled-resnet18-d4m-hard", 0.5 + add),
                 student(f"seed{seed}/students/protocols/distilled-resnet18-rded-soft", 0.7 + add, 120),
                 student(f"seed{seed}/students/protocols/random-resnet50-rded-hard", 0.3 + add, 120),
                 student(f"seed{seed}/students/storage/whole", 0.9), student(f"seed{seed}/students/storage/topk1", 0.8),
                 student(f"seed{seed}/students/storage/topk2-epochs0.1", 0.6),
                 labels(f"seed{seed}/soft-labels/storage-whole", 300_000, 10, 60),
                 labels(f"seed{seed}/soft-labels/storage-topk1", 200_000, 1, 60),
                 labels(f"seed{seed}/soft-labels/storage-topk2-epochs0.1", 20_000, 2, 6),
                 student(f"seed{seed}/students/cross/swin_t", 0.4 + add)]
    return Results(runs)


def test_protocols_have_a_column_for_each_kind_of_label_and_protocol(result):
    table = protocols(result)
    assert row_of(table, "Student")[2:] == ["hard, d4m", "hard, rded", "soft, d4m", "soft, rded", "Seeds (n)"]
    assert row_of(table, "resnet18", "D4M") == ["resnet18", "D4M images", "51.0 ± 1.4", "not run", "not run", "71.0 ± 1.4", "2"]
    assert row_of(table, "resnet50", "random")[3] == "31.0 ± 1.4"
    assert "resnet18 with 97.5 % after 60 epochs" in table[0].says and "d4m 60, rded 120" in table[0].says


def test_storage_says_how_many_times_smaller(result):
    assert row_of(storage(result), "10 of 10") == ["10 of 10", "60 of 60", "300.0", "50", "1.0", "90.0 ± 0.0", "2"]
    assert row_of(storage(result), "2 of 10") == ["2 of 10", "6 of 60", "20.0", "33", "15.0", "60.0 ± 0.0", "2"]
    assert list(storage_points(result)) == ["whole", "topk1", "topk2-epochs0.1"]
