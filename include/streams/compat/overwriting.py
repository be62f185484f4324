"""A commit that replaces data files, and then has as few manifests as after an append.

PyIceberg removes manifests without a live file, and merges small manifests, only when it appends. If nearly every
commit of a table replaces a file, each adds a manifest that is never removed, and each commit and each plan reads all
manifests.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import TableProperties, Transaction
from pyiceberg.table.snapshots import Operation
from pyiceberg.table.update.snapshot import _ManifestMergeManager, _OverwriteFiles
from pyiceberg.utils.properties import property_as_int


def overwrite(transaction: Transaction, properties: Mapping[str, str]) -> _OverwriteFiles:
    """Start to replace data files of the table's current snapshot.

    Args:
        transaction: A transaction of the table, which has a snapshot.
        properties: Written to the summary of the new snapshot.

    Returns:
        A context manager with `delete_data_file` and `append_data_file`. At its end, the transaction has the snapshot.
    """
    return _Overwrite(
        operation=Operation.OVERWRITE,
        transaction=transaction,
        io=transaction._table.io,
        snapshot_properties=dict(properties),
    )


class _Overwrite(_OverwriteFiles):
    def _process_manifests(self, manifests: list[ManifestFile]) -> list[ManifestFile]:
        properties = self._transaction.table_metadata.properties

        def setting(name: str, default: int) -> int:
            return property_as_int(properties, name, default) or default

        merge = _ManifestMergeManager(
            target_size_bytes=setting(
                TableProperties.MANIFEST_TARGET_SIZE_BYTES, TableProperties.MANIFEST_TARGET_SIZE_BYTES_DEFAULT
            ),
            min_count_to_merge=setting(
                TableProperties.MANIFEST_MIN_MERGE_COUNT, TableProperties.MANIFEST_MIN_MERGE_COUNT_DEFAULT
            ),
            merge_enabled=True,
            snapshot_producer=self,
        )
        # The manifests of this snapshot are also kept, because they name the files that it has deleted.
        needed = [
            manifest
            for manifest in manifests
            if manifest.has_added_files()
            or manifest.has_existing_files()
            or manifest.added_snapshot_id == self.snapshot_id
        ]
        data = [manifest for manifest in needed if manifest.content == ManifestContent.DATA]
        return merge.merge_manifests(data) + [manifest for manifest in needed if manifest not in data]
