"""What a trained model costs: multiply-adds, parameters or latency of one image."""

from pathlib import Path

from utils.config import load_run_config
from utils.runs.folder import read_record

ROUNDS, TURN_SECONDS = 3, 0.2  # of the latency


def cost_of(run: Path, cost: str) -> float:
    """Returns a cost of the model of the run in `run`, one of `searching.space.COSTS`; imports torch unless it is recorded."""
    record = read_record(run)
    if cost == "num_params":
        return record["parameters"]["num_params"]
    import torch

    from assembly import build_classifier, image_shape
    from deployment.profiling.measure import count_multiply_adds, interleaved, restored_threads, spread

    config, on_meta = load_run_config(run), cost == "multiply_adds"
    with torch.device("meta" if on_meta else "cpu"):
        model = build_classifier(config, record["num_classes"]).model.eval()
        image = torch.zeros(1, *image_shape(config))
    if on_meta:
        return count_multiply_adds(model, image)
    with restored_threads(), torch.inference_mode():
        torch.set_num_threads(1)
        times = interleaved({"model": lambda: model(image)}, rounds=ROUNDS, seconds=TURN_SECONDS)
    return 1000 * spread(times["model"]).median
