"""The twin in Hugging Face's Trainer: python examples/hugging_face_trainer.py (needs the extra `hf`)

The twin returns what the model returns, twice; only `compute_loss` has to know.
"""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

import adjoined


class Digits(Dataset):
    def __init__(self, rows: slice):
        raw = load_digits()
        self.pixels = torch.tensor(raw.images[rows], dtype=torch.float32)[:, None] / 8 - 1
        self.labels = torch.tensor(raw.target[rows])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self.pixels[i], "labels": self.labels[i]}


class AdjoinedTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, **_):
        labels = inputs.pop("labels")
        large, small = model(**inputs)
        progress = self.state.global_step / max(1, self.state.max_steps)
        loss = adjoined.adjoined_loss(large.logits, small.logits, labels, min(progress, 1.0))["loss"]
        return (loss, {"logits": small.logits}) if return_outputs else loss


set_seed(0)
sizes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
config = ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
model = ViTForImageClassification(config)  # or .from_pretrained(...)
axes = adjoined.find_axes(model, {"pixel_values": torch.zeros(2, 1, 8, 8)})
twin = adjoined.Adjoined(model, axes.plan(alpha=2))

arguments = TrainingArguments(
    output_dir=tempfile.mkdtemp(),
    num_train_epochs=6,
    per_device_train_batch_size=50,
    learning_rate=3e-3,
    label_names=["labels"],  # since the twin's forward names none
    remove_unused_columns=False,
    save_strategy="no",
    use_cpu=True,
    disable_tqdm=True,
)
trainer = AdjoinedTrainer(twin, arguments, train_dataset=Digits(slice(0, 1400)))
trainer.train()
guessed = trainer.predict(Digits(slice(1400, None)))
print(f"small: {100 * (guessed.predictions.argmax(-1) == guessed.label_ids).mean():.1f} % top-1")
adjoined.save(twin.eval().small(), "small")
