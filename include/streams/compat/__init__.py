"""Modules that use private parts of other packages, and may stop working with any release of these packages.

Each module checks the private parts before it uses them. A missing or changed part must never look like an outage.

connections
    Uses `airflow.sdk.execution_time`: `SUPERVISOR_COMMS`, `GetConnection`, `ensure_secrets_backend_loaded` and
    `ExecutionAPISecretsBackend`. Tested with 3.3.2. Without them, a connection that Airflow does not find counts as not
    defined, also in an outage of the API server. Each process logs one warning about this.

gcsfs_settings
    Sets the environment variable `GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT` of gcsfs for emulators. Tested with 2026.10.1.
    Without it, the first access to each bucket of an emulator takes a minute.

kafka_settings
    Overrides `KafkaBaseHook._get_client` of Airflow's Kafka provider. Tested with 2.1.0. Without it, no Kafka client
    can be created, and a TypeError names this module.

metadata
    Reads the columns `dag_id`, `run_id`, `state` and `run_after` of Airflow's table `dag_run`. Tested with 3.3.2.
    Without them, the overview (`make look`) says that Airflow cannot be queried, and shows the rest; the command that
    moves a claim asks the person.

models
    Uses `__pydantic_core_schema__` of pydantic models. Tested with 2.14.3. Without it, the columns of a contract's
    tables cannot be derived, with a TypeError that names the model.

objects, google_objects, amazon_objects
    Use `_get_directory_info`, `_get_file` and `_open` of gcsfs (tested with 2026.10.1), and `_call_s3`, `_info` and
    `_open` of s3fs (tested with 2026.9.0). Without them, the import of the module fails with an ImportError that names
    the missing methods; a test fails if objects are listed again. Use `FsspecFileIO._scheme_to_fs` and
    `FsspecInputFile._fs` of PyIceberg. Tested with 0.12.0. Without them, a table cannot be loaded, with a TypeError
    that names the missing attribute.

overwriting
    Uses `_OverwriteFiles` and `_ManifestMergeManager` of PyIceberg. Tested with 0.12.0. Without them, a commit that
    replaces files fails with an ImportError that names the missing class; a test counts the manifests after commits.

recursive_avro
    Uses `_read_py` of fastavro. Tested with 1.13.1. Without it, messages of a recursive Avro schema cannot be read, and
    their tasks fail with an ImportError.

triggerer
    Uses `TriggerRunner.run_trigger` and `.sync_state_to_supervisor` of Airflow. Tested with 3.3.2. Without them, an
    event waits for the triggerer's next tick, half a second on average, and each process logs one warning.
"""
