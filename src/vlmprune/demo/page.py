"""The page: what a visitor can do on it, and what happens then."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from vlmprune.ask.run import Answer
from vlmprune.core.errors import UserError
from vlmprune.demo.asking import Desk, Result
from vlmprune.demo.cards import FOLDER, cards
from vlmprune.demo.samples import Sample
from vlmprune.demo.settings import MOST_METHODS, Settings, read_query
from vlmprune.demo.uploads import take_upload
from vlmprune.drawing.html import data_url
from vlmprune.drawing.sheet import fit

KEEP_FOR = 3600  # seconds that a photo stays in memory after its visitor has left
# After an answer the address of the page is the link to its settings.
_TO_LINK = "() => { const a = document.querySelector('.vp-link'); a && history.replaceState(null, '', a.search); }"
_TO_QUERY = "() => [window.location.search]"


@dataclass(frozen=True)
class Visit:
    """What the server holds for a visitor, in memory.

    Attributes:
        image: the picture that is asked about.
        sample: its name among the samples; empty for a photo of the visitor's own.
        question: that the unpruned answer is to.
        plain: the unpruned answer about this picture, once it is known.
    """

    image: Image.Image
    sample: str
    question: str = ""
    plain: Answer | None = None


@dataclass
class Page:
    """The page of one model.

    Attributes:
        desk: where answers come from.
        samples: by name.
        offered: methods that a visitor can choose.
        start: what is chosen at first.
        uploads: the folder in which Gradio puts what is uploaded.
    """

    desk: Desk
    samples: dict[str, Sample]
    offered: Sequence[str]
    start: Settings
    uploads: Path

    def blocks(self) -> gr.Blocks:
        """The page as a Gradio application."""
        first = self.samples[self.start.sample]
        with gr.Blocks(title="vlmprune", analytics_enabled=False, delete_cache=(600, 600)) as blocks:
            visit, query = gr.State(None, time_to_live=KEEP_FOR), gr.Textbox(visible=False)
            gr.HTML(_heading(self.desk.loaded.name))
            with gr.Row():
                with gr.Column(scale=1, min_width=300):
                    upload = gr.File(label="Drop a photo", file_count="single", height=110, elem_id="vp-upload")
                    sample = gr.Radio([*self.samples], value=first.name, label="or pick a sample", elem_id="vp-sample")
                    picture = gr.HTML("", elem_id="vp-picture")
                    question = gr.Textbox(first.question, label="Question", lines=1, elem_id="vp-question")
                    methods = gr.Dropdown(
                        [*self.offered],
                        value=[*self.start.methods],
                        multiselect=True,
                        max_choices=MOST_METHODS,
                        label="Methods",
                        elem_id="vp-methods",
                    )
                    keep = gr.Slider(
                        0.01, 1.0, value=self.start.keep, step=0.01, label="Share of tokens to keep", elem_id="vp-keep"
                    )
                    button = gr.Button("Ask", variant="primary", elem_id="vp-ask")
                with gr.Column(scale=3, min_width=320):
                    message = gr.HTML("", elem_id="vp-message")
                    results = gr.HTML("", elem_id="vp-results")
            ours: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
            shown, settings = [visit, sample, picture, message], [question, methods, keep]
            upload.upload(self.upload, [upload, visit], [upload, *shown], **ours)
            sample.input(self.pick, [sample], [question, *shown], **ours)
            asked = gr.on(
                [button.click, question.submit, keep.release],
                self.ask,
                [visit, sample, *settings],
                [visit, message, results],
                trigger_mode="always_last",
                concurrency_limit=None,
                **ours,
            )
            asked.then(None, js=_TO_LINK)
            opened = blocks.load(self.open, [query], [*settings, *shown, query], js=_TO_QUERY, **ours)
            linked = opened.success(
                self.ask_linked,
                [query, visit, sample, *settings],
                [visit, message, results],
                concurrency_limit=None,
                **ours,
            )
            linked.then(None, js=_TO_LINK)
        return blocks

    # ------------------------------------------------------------ what visitors do

    def upload(self, path: str | None, visit: Visit | None) -> tuple[Any, ...]:
        """A photo has been dropped: it is read into memory, and its file is deleted at once."""
        kept = gr.skip()
        if path is None:
            return (kept,) * 5
        try:
            image = take_upload(Path(path), self.uploads)
        except UserError as error:
            return None, kept, kept, kept, _told(str(error))
        return None, Visit(image, ""), None, _preview(image, "your photo"), ""

    def pick(self, name: str) -> tuple[Any, ...]:
        """A sample has been picked."""
        chosen = self.samples.get(name)
        if chosen is None:
            return gr.skip(), gr.skip(), gr.skip(), gr.skip(), _told(f"There is no sample {name!r}.")
        return chosen.question, Visit(chosen.image, chosen.name), name, _preview(chosen.image, name), ""

    def open(self, query: str) -> tuple[Any, ...]:
        """The page has been opened, perhaps by a link with settings. The last value says whether to ask at once."""
        sentence, linked = "", None
        try:
            linked = read_query(query, self.start, self.samples, self.offered)
        except UserError as error:
            sentence = _told(f"{error} The page shows its own settings instead of the link's.")
        settings = linked or self.start
        chosen = self.samples[settings.sample]
        visit = Visit(chosen.image, chosen.name)
        shown = visit, chosen.name, _preview(chosen.image, chosen.name), sentence
        return settings.question, [*settings.methods], settings.keep, *shown, query if linked else ""

    def ask_linked(self, query: str, *given: Any) -> Iterator[tuple[Any, ...]]:
        """Ask at once where a link named the settings."""
        if query:
            yield from self.ask(*given)
        else:
            yield gr.skip(), gr.skip(), gr.skip()

    def ask(
        self, visit: Visit | None, sample: str | None, question: str, methods: Sequence[str] | None, keep: float
    ) -> Iterator[tuple[Any, ...]]:
        """The visitor asks: the visit, a message, and the cards, after each answer."""
        visit = visit or Visit(self.samples[self.start.sample].image, self.start.sample)
        settings = Settings(visit.sample, question or "", tuple(methods or ()), float(keep))
        try:
            settings.check(self.samples, self.offered)
        except UserError as error:
            yield gr.skip(), _told(str(error)), gr.skip()
            return
        plain = visit.plain if visit.question == settings.question else None
        found: list[Result] = []
        names = ["unpruned", *settings.methods]
        yield gr.skip(), "", self._cards(visit, settings, found, names[0])
        for result in self.desk.results(visit.image, settings.question, settings.methods, settings.keep, plain):
            found.append(result)
            if len(found) == 1:
                visit = replace(visit, question=settings.question, plain=result.answer)
            if len(found) < len(names):
                yield visit, "", self._cards(visit, settings, found, names[len(found)])
        yield visit, "", self._cards(visit, settings, found)

    def _cards(self, visit: Visit, settings: Settings, found: Sequence[Result], waiting: str = "") -> str:
        link = "" if waiting else settings.query()
        processor = self.desk.loaded.processor
        return cards(visit.image, processor, found, waiting=waiting, link=link, head=settings.question)


def _heading(model: str) -> str:
    return (
        '<div class="vp-head"><h1>What does a model lose when it sees a part of the picture?</h1>'
        f"<p>{escape(model)} answers with all its visual tokens, then with those that each method keeps.</p></div>"
    )


def _preview(image: Image.Image, name: str) -> str:
    source = data_url(fit(image, 0, 480), "WEBP")
    return f'<div class="vp-picture"><img src="{source}" alt="{escape(name)}"><p>{escape(name)}</p></div>'


def _told(sentence: str) -> str:
    return f'<p class="vp-problem" role="alert">{escape(sentence)}</p>'


def dress() -> dict[str, Any]:
    """Theme, style and script of the page; nothing of it comes from another server."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    return {
        "theme": gr.themes.Default(**fonts),
        "css": (FOLDER / "page.css").read_text(encoding="utf-8"),
        "head": f"<script>{script}</script>",
    }
