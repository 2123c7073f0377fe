"""A topic's objects as an Apache Iceberg table: its metadata, beside them in the tier, of format version 2.

  topics/<name>-<id>/iceberg/metadata/
    version-hint.text                       N, of the newest version, as text
    v<N>.metadata.json                      the table: schemas, snapshots, where the manifest list of each is
    snap-<snapshot id>-1-<UUID>.avro        a manifest list: the manifests of a snapshot
    <UUID>-m<number>.avro                   a manifest: data files, which are the topic's objects, with their statistics

This is the layout of a table without a catalog (Iceberg's "Hadoop tables"). Who creates `v<N+1>.metadata.json`, which
nobody else can do then, has changed the table; the hint follows, and may be one behind for as long as a process is
dead. All other files have names of their own, and are never changed.

The manifests of the partitions say what is in the topic, and the table follows them. A writer reads the table first
and the manifests then. So if it succeeds, nobody has changed the table since it read them: what retention took out of a
manifest, and then out of the table, does not come back, and its object may be deleted.
"""
