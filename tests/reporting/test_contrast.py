"""Colours of the pages against their backgrounds, light and dark, by WCAG 2.2."""

import re
from importlib import resources

import pytest

from ard_jax.reporting import plots

CSS = (resources.files("ard_jax.reporting") / "templates/page.css").read_text()
COLOURS = {
    name: pair for name, *pair in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", CSS)
}


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_the_formula():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_lines_are_readable(theme):
    on = {name: pair[theme] for name, pair in COLOURS.items()}
    for name in ("ink", "soft", "good", "bad", "accent"):
        for back in ("page", "card"):
            assert contrast(on[name], on[back]) >= 4.5, (name, back)
    assert contrast(on["ink"], on["warn-back"]) >= 4.5
    for colour in plots.COLOURS:
        assert contrast(colour, on["card"]) >= 3, colour
    # A number on the strongest tint of a table, and of a confusion matrix.
    for tint, share in ((on["accent"], 0.28), (plots.COLOURS[0], 0.6)):
        mixed = "#" + "".join(
            f"{round(share * int(tint[i : i + 2], 16) + (1 - share) * int(on['card'][i : i + 2], 16)):02x}"
            for i in (1, 3, 5)
        )
        assert contrast(on["ink"], mixed) >= 4.5
