"""A few small training steps, kernel by kernel, that use every part of the step: what compute-sanitizer looks at."""

import torch

from benchmarks import checkout  # noqa: F401
from tests.gates import strict_interpreter

strict_interpreter.install()  # without a GPU

from saefast import SAE, SAEConfig, TrainConfig, Trainer


def main(device: str = "cuda") -> None:
    on_gpu = device == "cuda"  # the interpreter takes seconds for what a GPU does in microseconds
    B, D, F, n_steps = (48, 72, 200, 3) if on_gpu else (4, 16, 20, 2)
    x = torch.randn(B, D, generator=torch.Generator().manual_seed(0)).to(device) + 1
    for options in ({}, {"grad_clip": 1.0}, {"state_dtype": "int8", "rescore": 4})[: 3 if on_gpu else 1]:
        sae = SAE(SAEConfig(d_in=D, d_sae=F, k=4)).to(device)
        sae.b_enc.data[:8], sae.b_enc.data[9] = -50.0, 50.0  # dead from the start, and active in every token
        config = TrainConfig(
            total_tokens=100 * B,
            batch_size=B,
            lr=1e-3,
            k_aux=4,
            dead_feature_threshold=B,
            cuda_graph=False,
            backend="triton",
            **options,
        )
        trainer = Trainer(sae, config)
        metrics = [trainer.step(x) for _ in range(n_steps)]
        print(options, [f"{float(m.loss):.4f} auxk {float(m.auxk_loss):.3f}" for m in metrics])


if __name__ == "__main__":
    main("cuda" if torch.cuda.is_available() else "cpu")
