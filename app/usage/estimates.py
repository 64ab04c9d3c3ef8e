"""What a call takes where nobody has said so yet: before it is sent, and where its end was lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from app.usage import pictures
from app.usage.kinds import Basis, Kind, Quantity
from app.usage.reports import Picture

CHARACTERS_PER_TOKEN = 3
TOKENS_OF_IMAGE_TOOL = 1_500
RESERVED_OUTPUT_TOKENS = 3_000
LIKELY_OUTPUT_TOKENS, LIKELY_OUTPUT_TOKENS_DRAWING = 400, 1_300


def text_tokens(characters: int) -> int:
    return ceil(characters / CHARACTERS_PER_TOKEN)


@dataclass(frozen=True)
class CallEstimate:
    """The input of one call: `characters` of instructions, history and request, and the tokens of given pictures."""

    model: str
    image_model: str | None
    characters: int
    given_tokens: int = 0

    def input(self) -> list[Quantity]:
        tool = TOKENS_OF_IMAGE_TOOL if self.image_model else 0
        tokens = text_tokens(self.characters) + tool + self.given_tokens
        return [Quantity(Kind.INPUT, self.model, tokens, Basis.ESTIMATED)]

    def output(self, tokens: int) -> Quantity:
        return Quantity(Kind.OUTPUT, self.model, tokens, Basis.ESTIMATED)

    def picture(self, options: Mapping[str, Any]) -> list[Quantity]:
        """One that is drawn with these options of the wire; nothing where the call may not draw."""
        if self.image_model is None:
            return []
        frames, partials = options.get("frame_count") or 1, options.get("partial_images") or 0
        one = Picture("", options.get("size"), options.get("quality"), frames, partials)
        made = Quantity(Kind.IMAGE_OUTPUT, self.image_model, one.output_tokens(self.image_model), Basis.ESTIMATED)
        looked_at = Quantity(Kind.IMAGE_INPUT, self.image_model, self.given_tokens, Basis.ESTIMATED)
        return [looked_at, made] if self.given_tokens else [made]

    def reserved(self, options: Mapping[str, Any], *, calls: int = 1) -> list[Quantity]:
        """What is held for it before it is sent: `calls` may follow from it; nothing is taken as cached."""
        return [*self.input(), self.output(RESERVED_OUTPUT_TOKENS * calls), *self.picture(options)]

    def received(self, characters: int, came: Sequence[Picture], partials: int) -> list[Quantity]:
        """Of a call whose end was lost: its input, and what came; `partials` are previews of pictures that did not."""
        found = [*self.input(), self.output(text_tokens(characters))]
        if self.image_model and (came or partials):
            image_model = self.image_model
            found.append(Quantity(Kind.IMAGE_INPUT, image_model, self.given_tokens, Basis.ESTIMATED))
            early = pictures.TOKENS_PER_PARTIAL * partials
            found.append(Quantity(Kind.IMAGE_OUTPUT, image_model, early, Basis.ESTIMATED))
            found += [
                Quantity(
                    Kind.IMAGE_OUTPUT, image_model, one.output_tokens(image_model), Basis.ESTIMATED, one.tool_call_id
                )
                for one in came
            ]
        return [one for one in found if one.quantity]
