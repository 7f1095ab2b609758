# Read by the shell of a container's command before all else (BASH_ENV). Whoever takes a pod or a job of Batch away tells the
# first process of its container: a shell that waits for the step, and passes nothing on; half a minute later all is killed,
# without a checkpoint. So the command runs in a second shell, and this one, which can listen while it waits, tells the step.
if [ -z "$STEP_IS_TOLD" ]; then
    export STEP_IS_TOLD=1
    tell_step() {
        for process in /proc/[0-9]*; do
            { read -r _ _ _ _ group _ < "$process/stat"; } 2> /dev/null || continue
            [ "$group" = "$command" ] || continue
            words=$(tr '\0' ' ' < "$process/cmdline")
            case ${words%% *} in *python*) ;; *) continue ;; esac
            case $words in *" step "*) kill -TERM "${process#/proc/}" ;; esac
        done
    }
    trap 'is_told=1; tell_step' TERM
    set -m # the command has a process group of its own, by which its processes are found
    bash -c "$BASH_EXECUTION_STRING" &
    command=$!
    set +m # or it would report how the command went
    code=127
    while
        is_told=
        wait "$command" # ended by each signal, too, with a code that is not the command's
        ended=$?
        [ "$ended" = 127 ] || code=$ended # 127: its code is known already
        [ -n "$is_told" ]
    do :; done
    exit "$code"
fi
