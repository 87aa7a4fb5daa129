
_ghapp_completion() {
    local IFS=$'\n'
    local rest=$COMP_LINE word words=() current response completion type value

    for word in "${COMP_WORDS[@]:0:COMP_CWORD+1}"; do
        if [[ ${#words[@]} -gt 0 && -n $word && $rest == "$word"* ]]; then
            words[${#words[@]}-1]+=$word
        else
            words+=("$word")
        fi
        rest=${rest#*"$word"}
    done
    current=${words[${#words[@]}-1]}

    response=$(env COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) _GHAPP_COMPLETE=bash_complete "$1")

    for completion in $response; do
        IFS=',' read -r type value <<< "$completion"

        if [[ $type == 'dir' ]]; then
            COMPREPLY=()
            compopt -o dirnames
        elif [[ $type == 'file' ]]; then
            COMPREPLY=()
            compopt -o default
        elif [[ $type == 'plain' ]]; then
            if [[ $current == -*=* && $value != -* ]]; then
                value=${current%%=*}=$value
            fi
            COMPREPLY+=("${value#"${current%"$2"}"}")
        fi
    done

    return 0
}

_ghapp_completion_setup() {
    complete -o nosort -F _ghapp_completion ghapp
}

_ghapp_completion_setup;

