"""The model card, written from recorded facts (`training_summary.json`) and the recipe alone."""

from typing import Any

from spec2seq.training.recipe import Recipe


def model_card(facts: dict[str, Any], recipe: Recipe) -> str:
    """README.md of a model folder, with the front matter that the Hugging Face hub reads."""
    card = recipe.card
    languages = dict.fromkeys((card.source_language, card.target_language))
    front = ["---", "language:", *(f"- {code}" for code in languages), f"license: {card.licence}",
             "library_name: transformers", "tags:", "- text2text-generation", "- spec2seq", "---"]  # fmt: skip
    parts = ["\n".join(front), f"# {facts['name']}", _what(facts, recipe), _scores(facts), _data(facts, recipe)]
    parts += [_training(facts, recipe), _limits(recipe)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _what(facts: dict[str, Any], recipe: Recipe) -> str:
    shape, card = recipe.model, recipe.card
    return (
        f"A {shape.family}-shaped encoder–decoder model, {card.source_language} → {card.target_language}: "
        f"{shape.encoder_layers} encoder and {shape.decoder_layers} decoder layers of width {shape.width}, "
        f"{shape.heads} heads, feed-forward width {shape.feed_forward}, {facts['vocabulary_size']} joint SentencePiece "
        f"tokens, shared embeddings, {facts['parameters']:,} parameters, stored as float16. "
        "`AutoModelForSeq2SeqLM.from_pretrained` loads this folder."
    )


def _scores(facts: dict[str, Any]) -> str:
    rows = []
    for name in ("dev", "test"):
        scores = facts[name]
        if scores and scores["bleu"] is not None:
            cells = (name, scores["lines"], f"{scores['bleu']:.2f}", f"{scores['chrf']:.2f}", f"{scores['nll']:.3f}")
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    if not rows:
        return "## Scores\n\nNot measured (sacrebleu was missing)."
    head = "| set | lines | BLEU | chrF | nats a token |\n|---|---|---|---|---|"
    last = facts["test"] or facts["dev"]
    signatures = f"sacrebleu signatures: `{last['bleu_signature']}` and `{last['chrf_signature']}`."
    how = "Greedy search, Transformers' own `generate`, float16 weights computed with in float32. The weights were"
    how += " chosen on the dev lines."
    return "\n".join(["## Scores", "", head, *rows, "", how, signatures])


def _data(facts: dict[str, Any], recipe: Recipe) -> str:
    data, card = recipe.data, recipe.card
    lines = ["## Data", ""]
    if card.data:
        lines += [card.data.strip(), ""]
    kept = f"{facts['train_lines']:,} pairs ({facts['train_target_tokens']:,} target tokens) passed the filters: "
    kept += f"{data.min_words} to {data.max_words} source words, at most {data.max_tokens} tokens a side, length ratio "
    kept += f"at most {data.max_ratio:g}" + (", no duplicates" if data.dedupe else "")
    if data.exclude_origins:
        kept += f"; left out: {', '.join(data.exclude_origins)}"
    lines.append(kept + ".")
    if card.data_licences:
        lines += ["", "Licences of the texts:", "", *(f"- {licence}" for licence in card.data_licences)]
    return "\n".join(lines)


def _training(facts: dict[str, Any], recipe: Recipe) -> str:
    return _steps(facts, recipe, f", dropout {recipe.model.dropout:g}")


def _steps(facts: dict[str, Any], recipe: Recipe, more: str = "") -> str:
    config, seen = recipe.training, "target tokens seen" if recipe.drafter is None else "drafted tokens learned"
    return "\n".join([
        "## Training", "",
        f"{facts['steps']:,} steps, {facts['target_tokens_seen']:,} {seen} ({facts['epochs']:.2f} epochs), "
        f"{facts['minutes']:g} minutes on {facts['device']} ({facts['threads']} threads, {facts['precision']}), torch "
        f"{facts['torch']}, transformers {facts['transformers']}. Weights: {facts['weights']}.", "",
        f"At most {config.tokens_per_batch} tokens a batch, AdamW, peak learning rate {config.learning_rate:g}, "
        f"{config.warmup_steps} warm-up steps, inverse square root, linear cool-down over the last "
        f"{100 * config.cooldown:g}%, label smoothing {config.label_smoothing:g}{more}. "
        "The whole recipe is `recipe.yaml`, the recorded facts are `training_summary.json`.",
    ])  # fmt: skip


def _limits(recipe: Recipe) -> str:
    return (
        "## Limits\n\nA small model for measuring decoding methods, trained for minutes, not for publication-grade "
        f"translations. Text outside of its domain, and sources longer than {recipe.data.max_tokens} tokens, "
        "come out badly."
    )


def drafter_card(facts: dict[str, Any], recipe: Recipe) -> str:
    """README.md of a block drafter's folder."""
    card, verifier = recipe.card, facts["verifier"]
    front = ["---", f"license: {card.licence}", "tags:", "- spec2seq", "- speculative-decoding", "---"]
    share = 100 * facts["parameters"] / verifier["parameters"]
    languages = " → ".join(filter(None, recipe.drafter.direction.values()))
    what = (
        f"A block drafter for the verifier `{verifier['folder']}`{', ' if languages else ''}{languages}: "
        f"{_layers(recipe)}, blocks of {recipe.drafter.block_size} tokens, {facts['parameters']:,} parameters "
        f"({share:.1f}% of the verifier's), stored as float16. {_uses(recipe)} `BlockDrafter.from_pretrained` loads "
        "this folder."
    )
    head = "| set | lines | tokens per verifier call, exact | accuracy by place | nats a token |\n|---|---|---|---|---|"
    rows = []
    for name in ("dev", "test"):
        if scores := facts[name]:
            places = " ".join(f"{share:.2f}" for share in scores["accuracy"])
            calls = f"{scores['tokens_per_verifier_call']:.2f}"
            rows.append(f"| {name} | {scores['lines']} | {calls} | {places} | {scores['nll']:.3f} |")
    data = (
        f"The verifier's own output for {facts['train_lines']:,} sources ({facts['train_target_tokens']:,} tokens), "
        "made by `spec2seq distill`."
    )
    parts = ["\n".join(front), f"# {facts['name']}", what, "\n".join(["## Scores", "", head, *rows])]
    if "speedup" in facts:
        parts.append(_speed(facts))
    parts.append("## Data\n\n" + "\n\n".join(filter(None, [data, card.data.strip()])))
    parts.append(_steps(facts, recipe, _glancing(recipe)))
    return "\n\n".join(parts) + "\n"


def _speed(facts: dict[str, Any]) -> str:
    speedup, lossless = facts["speedup"], facts["lossless"]
    return (
        f"Exact decoding with it is {speedup['median']:.2f} times as fast as the verifier's own greedy decoding "
        f"(quartiles {speedup['low']:.2f} to {speedup['high']:.2f}): {speedup['lines']} test lines at batch size 1, "
        f"{speedup['rounds']} interleaved rounds, {speedup['dtype']}, {speedup['threads']} threads, "
        f"{speedup['device']}. On {lossless['equal']} of {lossless['lines']} test lines its token ids were greedy's; "
        f"{lossless['ties']} differed by a numerical tie."
    )


def _layers(recipe: Recipe) -> str:
    if shape := recipe.cached_drafter:
        return f"{shape.layers} layer(s)"
    shape = recipe.paper_drafter
    return (
        f"the non-autoregressive one of SpecDec (Xia et al. 2023), {shape.encoder_layers} encoder and "
        f"{shape.decoder_layers} decoder layers of width {shape.width}, {shape.heads} heads, feed-forward width "
        f"{shape.feed_forward}"
    )


def _uses(recipe: Recipe) -> str:
    if shape := recipe.cached_drafter:
        return (
            "It reads the verifier's encoder output, embedding, head and the states of its decoder layers "
            f"{[*shape.hidden_layers]}, and drafts for no other model."
        )
    return "It drafts for any model with this vocabulary, best for the one whose output it learned from."


def _glancing(recipe: Recipe) -> str:
    if (shape := recipe.paper_drafter) is None:
        return ""
    start = "the verifier's encoder and embedding" if shape.init_encoder else "random weights"
    return (
        f", dropout {shape.dropout:g}; glancing from {start}, tokens revealed in {shape.start_p:g} to "
        f"{shape.start_p - shape.minus_p:g} of the wrong slots"
    )
