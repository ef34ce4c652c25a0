"""The dataset behind ``ListedLabels``. Its module needs MMSegmentation, which the rest of the package does not."""

import json
import os
from pathlib import Path

from mmseg.datasets import BaseSegDataset


class ListedLabelsDataset(BaseSegDataset):
    """Images and label maps of any names, which a JSON file lists."""

    def load_data_list(self) -> list[dict]:
        """Return the entries of the file, as MMSegmentation's pipelines take them."""
        listed = json.loads(Path(self.ann_file).read_text(encoding='utf-8'))['data_list']
        common = dict(label_map=self.label_map, reduce_zero_label=self.reduce_zero_label)
        return [
            {key: os.path.join(self.data_root or '', path) for key, path in entry.items()} | common | {'seg_fields': []}
            for entry in listed
        ]
