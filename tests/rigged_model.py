"""A real Llama model that writes sense without having learned any: every token's successors are built into its weights.

Hidden states are one-hot, the only layer adds nothing, and the head has a large value wherever one word may follow another. What
it writes to any prompt is a chain of thought and a verdict at once, in several wordings, so that a whole collection succeeds.
"""

from __future__ import annotations

from pathlib import Path

OPENINGS = tuple(f"{word}#z" for word in ("Clearly", "First", "Here", "Now", "So", "Then", "Thus", "Together"))
ENDING = "we add and get 3 + 4 = 7 . The answer is 7 . Verdict: correct"


def write_rigged_model(folder: Path) -> Path:
    """Write the model and its tokenizer in Hugging Face format."""
    import torch
    import transformers
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = ENDING.split()
    steps = [f"{word}#{chr(ord('a') + index)}" for index, word in enumerate(words)]  # a word that occurs twice is two tokens
    vocabulary = ["<unk>", "</s>", "<go>", *OPENINGS, *steps]
    size = 64
    vocabulary += [f"<{index}>" for index in range(len(vocabulary), size)]
    index = {word: number for number, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(index, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("#[a-z]"), " ")])
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}<go>"
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=size,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        eos_token_id=index["</s>"],
        bos_token_id=None,
        pad_token_id=index["</s>"],
    )
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        follows = [("<go>", opening) for opening in OPENINGS] + [(opening, steps[0]) for opening in OPENINGS]
        follows += [*zip(steps, [*steps[1:], "</s>"], strict=True), ("<unk>", "</s>"), ("</s>", "</s>")]
        for word, following in follows:
            model.lm_head.weight[index[following], index[word]] = 10.0
    model.save_pretrained(folder, safe_serialization=True)
    fast.save_pretrained(folder)
    return folder
