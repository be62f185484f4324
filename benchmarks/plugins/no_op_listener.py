"""A listener that does nothing: like OpenLineage's listener on Astro, task processes call it."""

from airflow.listeners import hookimpl
from airflow.plugins_manager import AirflowPlugin


class NoOpListener:
    """The hooks that OpenLineage's listener has."""

    @hookimpl
    def on_task_instance_running(self, previous_state, task_instance):
        pass

    @hookimpl
    def on_task_instance_success(self, previous_state, task_instance):
        pass

    @hookimpl
    def on_task_instance_failed(self, previous_state, task_instance, error):
        pass

    @hookimpl
    def on_task_instance_skipped(self, previous_state, task_instance):
        pass

    @hookimpl
    def on_dag_run_running(self, dag_run, msg):
        pass

    @hookimpl
    def on_dag_run_success(self, dag_run, msg):
        pass

    @hookimpl
    def on_dag_run_failed(self, dag_run, msg):
        pass


class NoOpListenerPlugin(AirflowPlugin):
    name = "no_op_listener"
    listeners = (NoOpListener(),)
