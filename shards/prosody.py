"""How an emotion changes the way a sentence is said: prosody rules from the literature, and speakers who follow them.

The directions are those that Murray & Arnott tabulate ("Toward the simulation of emotion in synthetic speech", JASA
93(2), 1993: speech rate, pitch average, pitch range, intensity, pitch changes); high-frequency energy follows Juslin &
Laukka (Psychological Bulletin 129(5), 2003): much in anger, a medium amount in happiness, little in sadness and fear.
The sizes are chosen here, in the manner of the rules collected by Schröder ("Emotional speech synthesis: a review",
Eurospeech 2001): large enough to be heard in unknown speakers, small enough for the classes to overlap.

| emotion   | rate          | pitch            | range            | intensity | pitch changes                 |
|-----------|---------------|------------------|------------------|-----------|-------------------------------|
| anger     | faster        | much higher      | much wider       | higher    | abrupt, on stressed words     |
| disgust   | much slower   | much lower       | slightly wider   | lower     | wide terminal fall            |
| fear      | much faster   | very much higher | wider            | normal    | normal, irregular voicing     |
| happiness | faster        | much higher      | much wider       | higher    | smooth, upward                |
| sadness   | slower        | slightly lower   | narrower         | lower     | downward                      |
"""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

import numpy as np

from shards import espeak


@dataclass(frozen=True)
class Rule:
    """What one emotion changes, at full strength, against neutral speech."""

    pitch: float = 0.0
    """Level in semitones."""
    span: float = 1.0
    """Factor on the pitch range."""
    rate: float = 1.0
    """Factor on words a minute."""
    loudness: float = 0.0
    """In decibels."""
    tilt: float = 0.0
    """Weight in y[n] = x[n] + tilt x[n-1]: above 0 the voice gets lax and dull, below 0 tense and bright."""
    slope: float = 0.0
    """Rise from the first to the last word, in semitones."""
    terminal: float = 0.0
    """Step on the last word, in semitones."""
    accent: float = 0.0
    """Step on every second word, in semitones."""
    wobble: float = 0.0
    """Standard deviation of a random step on every word, in semitones."""


RULES = {
    "anger": Rule(pitch=4.0, span=1.8, rate=1.25, loudness=6.0, tilt=-0.7, accent=6.0),
    "disgust": Rule(pitch=-5.0, span=1.2, rate=0.6, loudness=-2.0, tilt=0.1, terminal=-6.0),
    "fear": Rule(pitch=9.0, span=1.1, rate=1.6, tilt=0.2, wobble=1.0),
    "happiness": Rule(pitch=4.0, span=1.8, rate=1.05, loudness=3.0, tilt=-0.35, slope=10.0),
    "neutral": Rule(),
    "sadness": Rule(pitch=-1.5, span=0.3, rate=0.85, loudness=-5.0, tilt=0.9, slope=-3.0),
}


@dataclass(frozen=True)
class Speaker:
    """One voice with its habits."""

    name: str
    language: str
    voice: str
    """An eSpeak NG voice with its variant."""
    pitch: float
    """Semitones from the variant's own pitch."""
    span: float
    """Pitch range as eSpeak NG counts it."""
    rate: float
    """Words a minute."""
    strength: float
    """How strongly this person shows emotions; 1 is the rule as it stands."""
    noise: float
    """Root mean square of the room's noise, as a share of full scale."""


@dataclass(frozen=True)
class Delivery:
    """How one sentence is said; the first four in eSpeak NG's units."""

    pitch: int
    span: int
    rate: int
    contour: tuple[int, ...]
    """Change of the pitch on each word, in percent of `pitch`."""
    loudness: float
    """In decibels."""
    tilt: float


def deliver(rule: Rule, speaker: Speaker, words: int, rng: np.random.Generator) -> Delivery:
    """One delivery of a sentence of `words` words: the rule by the speaker's strength, and the chance of the moment.

    The chance is there because people vary: the same person shows the same emotion more and less, and the classes
    overlap.
    """
    strength = speaker.strength * rng.uniform(0.75, 1.2)
    pitch = speaker.pitch + strength * rule.pitch + rng.normal(0, 0.6)
    level = _clamp(espeak.NEUTRAL + espeak.STEPS_PER_SEMITONE * pitch, 5)
    position = np.linspace(-0.5, 0.5, words) if words > 1 else np.zeros(1)
    steps = rule.slope * position + rule.accent * (np.arange(words) % 2) + rule.wobble * rng.standard_normal(words)
    steps[-1] += rule.terminal
    contour = np.rint(100 * espeak.STEPS_PER_SEMITONE * strength * steps / level).astype(int)
    return Delivery(
        pitch=level,
        span=_clamp(speaker.span * rule.span**strength * np.exp(rng.normal(0, 0.1)), 0),
        rate=round(speaker.rate * rule.rate**strength * np.exp(rng.normal(0, 0.04))),
        contour=tuple(int(step) for step in contour),
        loudness=strength * rule.loudness + rng.normal(0, 1.5),
        tilt=strength * rule.tilt + rng.normal(0, 0.08),
    )


def mark_up(sentence: str, contour: tuple[int, ...]) -> str:
    """`sentence` as SSML with the pitch of each word changed by `contour`, in percent."""
    words = zip(sentence.split(), contour, strict=True)
    return (
        "<speak>"
        + " ".join(f'<prosody pitch="{step:+d}%">{escape(word)}</prosody>' for word, step in words)
        + "</speak>"
    )


def _clamp(value: float, lowest: int) -> int:
    return round(min(max(value, lowest), espeak.MAXIMUM))
