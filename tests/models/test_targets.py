"""A teacher's and auxiliary targets against their definitions, and what they leave as it was."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from losses import build_loss
from losses.auxiliary import AuxiliaryTargets
from losses.distillation import Distillation, Teacher, View
from losses.groupings import body_type, group_classes, make, numbered
from losses.targets import MoreTargets
from models import build_model
from models.finetuning.auxiliary_rows import cut_rows, join_rows
from models.finetuning.parameter_groups import head_names
from utils.errors import ConfigError

N, CLASSES, TEMPERATURE = 5, 4, 3.0


def view(size: tuple[int, int] = (8, 8), channels: int = 3, mean: float = 0.0, std: float = 1.0) -> View:
    return View(size, channels, torch.full((channels, 1, 1), mean), torch.full((channels, 1, 1), std))


class Linear(nn.Module):
    """Batch norm and a linear layer on the mean of each channel; keeps what it was given."""

    def __init__(self, outputs: int, channels: int = 3) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(channels), nn.Linear(channels, outputs)

    def forward(self, images: Tensor) -> Tensor:
        self.given = images
        return self.linear(self.norm(images.mean((2, 3))))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images in [0, 1], logits of a student that need a gradient, and labels."""
    torch.manual_seed(0)
    return torch.rand(N, 3, 8, 8), torch.randn(N, CLASSES, requires_grad=True), torch.tensor([0, 1, 3, 3, 2])


def test_the_divergence_is_torchs_of_the_mean_of_softened_probabilities_and_no_teacher_changes(batch):
    images, logits, _ = batch
    models = Linear(CLASSES), Linear(CLASSES + 2)
    order = [torch.arange(CLASSES), torch.tensor([5, 0, 3, 2])]  # of the same classes, among others
    before = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    teachers = [Teacher(model, view(), classes) for model, classes in zip(models, order, strict=True)]
    distillation = Distillation(teachers, view(), temperature=TEMPERATURE, weight=1.0)
    divergence = distillation(images, logits)

    with torch.no_grad():
        each = [model(images)[:, classes] for model, classes in zip(models, order, strict=True)]
        targets = sum((z / TEMPERATURE).softmax(1) for z in each) / 2
        student = (logits / TEMPERATURE).softmax(1)
    expected = TEMPERATURE**2 * (targets * (targets.log() - student.log())).sum(1)
    torch.testing.assert_close(divergence, expected)
    mean = TEMPERATURE**2 * nn.KLDivLoss(reduction="batchmean")((logits / TEMPERATURE).log_softmax(1), targets)
    torch.testing.assert_close(divergence.mean(), mean)

    divergence.mean().backward()
    torch.testing.assert_close(logits.grad, TEMPERATURE * (student - targets) / N)  # the T² keeps its size
    for model, state in zip(models, before, strict=True):
        assert not model.training and all(p.grad is None and not p.requires_grad for p in model.parameters())
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_a_teacher_sees_the_students_view_in_its_own_size_normalization_and_channels(batch):
    images, logits, _ = batch
    color, gray = Linear(CLASSES), Linear(CLASSES, channels=1)
    teachers = [
        Teacher(color, view((12, 6), mean=0.5, std=0.25), torch.arange(CLASSES)),
        Teacher(gray, view(channels=1, mean=0.4), torch.arange(CLASSES)),
    ]
    student = view(mean=0.3, std=0.2)
    distillation = Distillation(teachers, student, temperature=1.0, weight=1.0)
    distillation((images - 0.3) / 0.2, logits)
    resized = functional.interpolate(images, (12, 6), mode="bilinear", antialias=True)
    torch.testing.assert_close(color.given, (resized - 0.5) / 0.25, atol=1e-5, rtol=1e-5)
    luma = (images * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    torch.testing.assert_close(gray.given, luma - 0.4, atol=1e-3, rtol=0)
    Distillation(teachers[:1], view(channels=1), temperature=1.0, weight=1.0)(luma, logits)
    assert color.given.shape == (N, 3, 12, 6) and torch.equal(color.given[:, 0], color.given[:, 2])


GROUPS = {"make": [0, 0, 1, 2], "body_type": [1, 0, 1, 0]}


def test_groups_are_learned_by_cross_entropy_and_mixed_labels_by_their_shares(batch):
    _, _, labels = batch
    auxiliary = AuxiliaryTargets(GROUPS, weight=0.3)
    assert auxiliary.num_logits == 5 and not auxiliary.state_dict()
    logits = torch.randn(N, 5)
    expected = torch.stack([
        -logits[i, :3].log_softmax(0)[GROUPS["make"][label]] - logits[i, 3:].log_softmax(0)[GROUPS["body_type"][label]]
        for i, label in enumerate(labels)
    ])  # fmt: skip
    torch.testing.assert_close(auxiliary.losses(logits, labels), expected)
    other = labels.roll(1)
    mixed = 0.7 * functional.one_hot(labels, CLASSES) + 0.3 * functional.one_hot(other, CLASSES)
    shares = 0.7 * expected + 0.3 * auxiliary.losses(logits, other)
    torch.testing.assert_close(auxiliary.losses(logits, mixed), shares)
    makes = sum(int(logits[i, :3].argmax()) == GROUPS["make"][label] for i, label in enumerate(labels))
    assert auxiliary.hits(logits, labels)[0] == auxiliary.hits(logits, mixed)[0] == makes


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", [None, [0.1, 1.0, 3.0, 10.0]])
def test_all_terms_weigh_the_images_as_the_task_does(batch, reduction, weights):
    images, logits, labels = batch
    params = {"reduction": reduction} | ({"weight": weights} if weights else {})
    loss = build_loss("CrossEntropyLoss", params, num_classes=CLASSES)
    teacher = Teacher(Linear(CLASSES), view(), torch.arange(CLASSES))
    distillation = Distillation([teacher], view(), temperature=2.0, weight=0.6)
    targets = MoreTargets(distillation, AuxiliaryTargets(GROUPS, weight=0.3))
    groups = torch.randn(N, 5)
    task, denominator = loss(logits, labels), torch.tensor(weights)[labels].sum() if weights else torch.tensor(float(N))
    total, sums = targets(loss, images, (logits, groups), labels, (task, denominator))

    each = torch.tensor(weights)[labels] if weights else torch.ones(N)
    divergence, auxiliary = (
        (each * distillation(images, logits)).sum(),
        (each * targets.auxiliary.losses(groups, labels)).sum(),
    )
    whole = 0.4 * (task if reduction == "sum" else task * denominator) + 0.6 * divergence + 0.3 * auxiliary
    torch.testing.assert_close(total, whole if reduction == "sum" else whole / denominator)
    assert targets.names == ("total_loss", "distillation_loss", "make_acc", "body_type_acc")
    torch.testing.assert_close(sums[:2].float(), torch.stack([whole, divergence]).detach())


def test_further_rows_of_the_last_layer_are_cut_off_and_joined_again():
    model, plain = (build_model("sq_11", num_classes=count) for count in (CLASSES + 5, CLASSES))
    state = model.state_dict()
    kept, rows = cut_rows(state, head_names(model), 5)
    plain.load_state_dict(kept)
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(plain.eval()(images), model.eval()(images)[:, :CLASSES])
    joined = join_rows(kept, rows)
    assert joined.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in joined.items())


@pytest.mark.parametrize(
    ("name", "its_make", "its_type"),
    [
        ("AM General Hummer SUV 2000", "AM General", "SUV"),
        ("Aston Martin V8 Vantage Convertible 2012", "Aston Martin", "Convertible"),
        ("Land Rover LR2 SUV 2012", "Land Rover", "SUV"),
        ("Mercedes-Benz C-Class Sedan 2012", "Mercedes-Benz", "Sedan"),
        ("Rolls-Royce Phantom Drophead Coupe Convertible 2012", "Rolls-Royce", "Convertible"),
        ("Ram C/V Cargo Van Minivan 2012", "Ram", "Minivan"),
        ("Ford E-Series Wagon Van 2012", "Ford", "Van"),
        ("Ford Ranger SuperCab 2011", "Ford", "Cab"),
        ("Infiniti G Coupe IPL 2012", "Infiniti", "Coupe"),
        ("smart fortwo Convertible 2012", "smart", "Convertible"),
        ("Chevrolet Cobalt SS 2010", "Chevrolet", "none"),
        ("LAND_ROVER_DISCOVERY", "Land Rover", "none"),
    ],
)
def test_make_and_body_type_of_class_names(name, its_make, its_type):
    assert (make(name), body_type(name)) == (its_make, its_type)


NAMES = ("Audi TT Coupe 2012", "Audi S4 Sedan 2012", "BMW M3 Coupe 2012")


def test_groups_come_from_names_and_from_tables(tmp_path):
    (tmp_path / "own.csv").write_text("class,origin,age\n" + "".join(f"{name},{name[0]},new\n" for name in NAMES[:2])
                                      + f"{NAMES[2]},B,old\nFiat 500,F,old\n")  # fmt: skip
    (tmp_path / "size.yml").write_text("".join(f"{name}: {number % 2}\n" for number, name in enumerate(NAMES)))
    found = group_classes(["make", str(tmp_path / "own.csv"), str(tmp_path / "size.yml")], NAMES)
    assert {name: numbered(groups, NAMES) for name, groups in found.items()} == {
        "make": [0, 0, 1], "origin": [0, 0, 1], "age": [0, 0, 1], "size": [0, 1, 0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("target", "text", "message"),
    [
        ("maker", None, r"'maker'; expected make, body_type or a table \(.csv, .yml, .yaml\)\. Did you mean 'make'"),
        ("none.csv", None, "none.csv cannot be read: No such file"),
        (
            "a.csv",
            "class,x\nAudi TT Coupe 2012,1\nAudi S4 Sedan,1\n",
            "a.csv: x has no group for 2 of 3 classes: .*S4 Sedan",
        ),
        ("a.csv", "class,x\nAudi TT Coupe 2012,1,2\n", "a.csv, row 2: expected 2 values"),
        ("a.csv", "class\nAudi TT Coupe 2012\n", "a.csv has one column"),
        ("a.csv", "", "a.csv cannot be read: it is no CSV table"),
        ("a.csv", "class,x\nAudi TT Coupe 2012,1\nAudi S4 Sedan,\n", "a.csv: x has no group for 2 of 3 classes"),
        ("a.yml", "Audi TT Coupe 2012: 1\nAudi S4 Sedan:\n", "a.yml: a has no group for 2 of 3 classes"),
        ("a.csv", "class,x,x\nAudi,1,2\n", "a.csv has two columns 'x'"),
        ("a.csv", "class,x\nAudi,1\nKia,1\nAudi,2\n", "a.csv, row 4: 'Audi' has other groups in a row above"),
        ("a.csv", "class,my x\nAudi,1\n", "'my x'; expected a name of letters"),
        ("a.csv", "class,top5\nAudi,1\n", "'top5' is the name of a metric; choose another"),
        ("a.yml", "".join(f"{name}: 1\n" for name in NAMES), "has one group for all classes, which teaches nothing"),
        ("a.yml", "".join(f"{name}: {name}\n" for name in NAMES), "a group of its own for each class"),
    ],
)
def test_a_target_that_cannot_be_used_is_one_error(tmp_path, target, text, message):
    if text is not None:
        (tmp_path / target).write_text(text)
    with pytest.raises(ConfigError, match=message):
        group_classes([target if text is None else str(tmp_path / target)], NAMES)
