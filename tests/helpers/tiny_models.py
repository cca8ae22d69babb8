"""Models of Hugging Face of many kinds, of width 32 with random weights: what their modules give has many shapes."""

from functools import cache

import torch
import transformers as hf

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
EXPERTS = {"num_key_value_heads": 2, "num_experts_per_tok": 2}
T5 = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
KINDS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**BASE)),
    "qwen3_moe": lambda: hf.Qwen3MoeForCausalLM(
        hf.Qwen3MoeConfig(**BASE, **EXPERTS, moe_intermediate_size=16, head_dim=8, num_experts=4)
    ),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**BASE, **EXPERTS, num_local_experts=4)),
    # one expert for each token: as many rows as tokens, sorted by expert
    "mixtral_top1": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**BASE, **(EXPERTS | {"num_experts_per_tok": 1}), num_local_experts=4)
    ),
    "deepseek": lambda: hf.DeepseekV3ForCausalLM(
        hf.DeepseekV3Config(
            **BASE,
            **(EXPERTS | {"num_key_value_heads": 4}),
            moe_intermediate_size=16,
            n_routed_experts=4,
            n_group=2,
            topk_group=1,
            q_lora_rank=8,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            first_k_dense_replace=0,
        )
    ),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**BASE, **EXPERTS, head_dim=8, num_local_experts=4)
    ),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(
            vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0
        )
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(
            vocab_size=64,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=16,
            word_embed_proj_dim=32,
        )
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "bloom": lambda: hf.BloomForCausalLM(hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
    "bert": lambda: hf.BertModel(hf.BertConfig(**BASE, max_position_embeddings=16)),
    "roberta": lambda: hf.RobertaModel(hf.RobertaConfig(**BASE, max_position_embeddings=16)),
    "albert": lambda: hf.AlbertModel(hf.AlbertConfig(**BASE, embedding_size=16)),
    "xlnet": lambda: hf.XLNetLMHeadModel(
        hf.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48)
    ),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
    "switch": lambda: hf.SwitchTransformersForConditionalGeneration(
        hf.SwitchTransformersConfig(
            **T5,
            num_decoder_layers=2,
            num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1,
            num_experts=4,
            expert_capacity=64,
            decoder_start_token_id=0,
        )
    ),
    "vit": lambda: hf.ViTModel(
        hf.ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=16,
            patch_size=8,
        )
    ),
    "whisper": lambda: hf.WhisperModel(
        hf.WhisperConfig(
            vocab_size=64,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            num_mel_bins=8,
            max_source_positions=20,
            max_target_positions=20,
            pad_token_id=1,
            bos_token_id=2,
            eos_token_id=0,
            decoder_start_token_id=2,
        )
    ),
}


@cache
def model(kind: str):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = KINDS[kind]().eval()
        for param in made.parameters():  # large enough that every token matters
            if param.ndim > 1:
                param.data.normal_(0, 0.3)
        return made


def tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(2, 64, shape, generator=torch.Generator().manual_seed(seed))
