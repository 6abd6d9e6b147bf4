"""Rendering of clean sheets."""

from PIL import Image, ImageDraw

from .sheet import Run, Shape, Sheet


def draw_sheet(sheet: Sheet) -> Image.Image:
    """Render a sheet in RGB: shapes in their order, then all text."""
    image = Image.new("RGB", sheet.size, sheet.style.paper)
    draw = ImageDraw.Draw(image)
    for shape in sheet.shapes:
        _draw_shape(draw, shape)
    for run in sheet.texts:
        if run.angle:
            _draw_turned(image, run)
        else:
            draw.text((run.x, run.baseline), run.text, fill=run.color, font=run.face.load(run.size), anchor="ls")
    return image


def _draw_turned(image: Image.Image, run: Run) -> None:
    """Draw a run through a mask that is turned about its middle, where the text's left end is."""
    reach = round(run.width) + 2 * run.size
    middle = (reach + run.x % 1, reach + run.baseline % 1)
    mask = Image.new("L", (2 * reach, 2 * reach))
    ImageDraw.Draw(mask).text(middle, run.text, fill=255, font=run.face.load(run.size), anchor="ls")
    mask = mask.rotate(run.angle, Image.Resampling.BICUBIC, center=middle)
    image.paste(run.color, (int(run.x // 1) - reach, int(run.baseline // 1) - reach), mask)


def _draw_shape(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    if shape.kind in ("line", "path"):
        draw.line(shape.points, fill=shape.outline, width=shape.width, joint="curve")
    elif shape.kind == "polygon":
        draw.polygon(shape.points, fill=shape.fill)
    else:
        (left, top), (right, bottom) = shape.points
        bounds = (left, top, max(right, left), max(bottom, top))
        if shape.kind == "ellipse":
            draw.ellipse(bounds, shape.fill, shape.outline, shape.width)
        elif shape.kind == "round":
            radius = 0.25 * min(right - left, bottom - top)
            draw.rounded_rectangle(bounds, max(radius, 0), shape.fill, shape.outline, shape.width)
        elif shape.kind == "slice":
            draw.pieslice(bounds, *shape.angles, fill=shape.fill)
        else:
            draw.rectangle(bounds, shape.fill, shape.outline, shape.width)
