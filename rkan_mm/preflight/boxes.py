"""Boxes that are written in another way than COCO's x, y, width, height in pixels, told from all of a file's."""

from __future__ import annotations

from collections import Counter

from .faults import Faults

ENOUGH = 5
"""Boxes from which on it is judged whether they are centres and sizes."""

TINY = 0.01
"""Part of its box that no object is below, where all of a file are."""


class Boxes:
    """The boxes of a json, each looked at once."""

    def __init__(self) -> None:
        self.beyond: list[str] = []
        self.count = 0
        self.sized = 0
        self.corners = self.centres = self.parts = self.small = self.large = True
        self.places: Counter = Counter()

    def add(self, annotation: dict, image: dict) -> None:
        """Take in an annotation whose box has been found to be four numbers."""
        x, y, width, height = box = annotation['bbox']
        right, bottom = image['width'] + 1, image['height'] + 1
        self.count += 1
        self.corners = self.corners and x <= width <= right and y <= height <= bottom
        self.centres = (self.centres and x - width / 2 >= -1 and y - height / 2 >= -1 and x + width / 2 <= right
                        and y + height / 2 <= bottom)
        self.parts = self.parts and max(box) <= 1 and min(width, height) > 0
        if size := width * height:
            self.sized += 1
            self.small = self.small and annotation['area'] < TINY * size
            self.large = self.large and annotation['area'] > size / TINY
        self.places[annotation['image_id'], annotation.get('category_id'), x, y, width, height] += 1
        if x + width > right or y + height > bottom:
            self.beyond.append(f'{box} of {image["file_name"]} ({image["width"]}x{image["height"]})')

    def judge(self, faults: Faults, evaluated: bool) -> None:
        """Add what is wrong to the faults: of corners about half the boxes would reach beyond their images.

        Args:
            faults: of the json.
            evaluated: whether COCO's evaluation will sort its objects by area.
        """
        if evaluated and self.sized and not self.parts and (self.small or self.large):
            faults.add('has areas that are far from width * height of the boxes', f'each of {self.count} annotations',
                       'write them in pixels; AP of small, medium and large objects goes by them')
        many = 10 * len(self.beyond) > self.count
        if self.parts and self.count:
            faults.add('has boxes of no more than one pixel', f'each of {self.count} annotations',
                       'where they are parts of width and height, from 0 to 1, multiply them by those')
        elif self.corners and many:
            self._add(faults, 'reaches beyond its image, and all boxes could be corners x1, y1, x2, y2',
                      'write [x1, y1, x2 - x1, y2 - y1]')
        elif self.centres and many and self.count >= ENOUGH:
            self._add(faults, 'reaches beyond its image, and no box would as centre x, y, width, height',
                      'write [x - width / 2, y - height / 2, width, height]')
        else:
            for box in self.beyond:
                faults.note('boxes reach beyond their images', box)
        for (image, *_), count in self.places.items():
            if count > 1:
                faults.note('objects are annotated more than once, by the same box; all but one count as missed in '
                            'evaluation. They are in the images', image)

    def _add(self, faults: Faults, fault: str, cure: str) -> None:
        for box in self.beyond:
            faults.add(fault, box, cure)
