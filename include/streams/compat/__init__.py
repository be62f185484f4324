"""Modules that use private parts of other packages, and may stop working with any release of these packages.

Each module checks the private parts before it uses them. A missing or changed part must never look like an outage.

connections
    Uses `airflow.sdk.execution_time`: `SUPERVISOR_COMMS`, `GetConnection`, `ensure_secrets_backend_loaded` and
    `ExecutionAPISecretsBackend`. Tested with 3.3.2. Without them, a connection that Airflow does not find counts as not
    defined, also in an outage of the API server. Each process logs one warning about this.

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

objects
    Uses `_get_directory_info`, `_get_file` and `_open` of gcsfs. Tested with 2026.10.1. Without them, the import of the
    module fails with an ImportError that names the missing methods; a test fails if objects are listed again. Uses
    `FsspecFileIO._scheme_to_fs` and `FsspecInputFile._fs` of PyIceberg. Tested with 0.12.0. Without them, a table
    cannot be loaded, with a TypeError that names the missing attribute.

overwriting
    Uses `_OverwriteFiles` and `_ManifestMergeManager` of PyIceberg. Tested with 0.12.0. Without them, a commit that
    replaces files fails with an ImportError that names the missing class; a test counts the manifests after commits.

triggerer
    Uses `TriggerRunner.run_trigger` and `.sync_state_to_supervisor` of Airflow. Tested with 3.3.2. Without them, an
    event waits for the triggerer's next tick, half a second on average, and each process logs one warning.
"""
