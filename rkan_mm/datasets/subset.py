"""A few images of a COCO-format annotation file, to try things on."""

from __future__ import annotations

import json
from pathlib import Path


def subset_coco(source: str | Path, target: str | Path, num_images: int, max_instances: int | None = None) -> list[str]:
    """Write the annotations of the first images that have any.

    Args:
        source: COCO-format annotation file.
        target: annotation file to write; its folder is made.
        num_images: images to keep.
        max_instances: leave out images with more instances than that, or with crowds.

    Returns:
        File names of the images.

    Raises:
        ValueError: the source is no COCO json, has fewer such images, or is the target.
    """
    if Path(source).resolve() == Path(target).resolve():
        raise ValueError(f'subset_coco: {source} would be overwritten by its own part; name another target')
    annotations: dict[int, list[dict]] = {}
    try:
        content = json.loads(Path(source).read_text())
        content['images'] = sorted(content['images'], key=lambda image: (image['id'], image['file_name']))
        for annotation in content['annotations']:
            annotations.setdefault(annotation['image_id'], []).append(annotation)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'subset_coco: {source} is no COCO json of instances ({type(error).__name__}: {error})'
                         ) from error

    def fits(image: dict) -> bool:
        own = annotations.get(image['id'], [])
        return bool(own) and (max_instances is None
                              or (len(own) <= max_instances and not any(a.get('iscrowd') for a in own)))

    images = [image for image in content['images'] if fits(image)][:num_images]
    if len(images) < num_images:
        raise ValueError(f'subset_coco: {source} has {len(images)} images with 1 to {max_instances or "any number of"} '
                         f'instances, {num_images} were asked for')
    content.update(images=images, annotations=[a for image in images for a in annotations[image['id']]])
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(json.dumps(content))
    return [image['file_name'] for image in images]
