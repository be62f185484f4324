#!/bin/sh
# Puts the jars of Kafka Connect's Iceberg sink into a folder, for a Connect that is not the local stack's:
#   sh stack/connect_plugin.sh stack/sink.lock FOLDER
# Needs wget and sha256sum, which the image apache/kafka has. A jar with the locked SHA-256 is not fetched again, so an
# interrupted run can be repeated. MAVEN_URL names a mirror of Maven Central; https_proxy names a proxy, which both wgets
# know by its name in small letters. FIRST_PAUSE is the pause after a failed attempt, in seconds; it doubles each time.
set -eu

lock=$1
folder=$2
url=${MAVEN_URL:-https://repo1.maven.org/maven2}

attempts=5
first_pause=${FIRST_PAUSE:-2}
https_proxy=${https_proxy:-${HTTPS_PROXY:-}}
[ -z "$https_proxy" ] || export https_proxy

# A download may end early without an error of wget, behind a proxy for example: its content decides.
attempt_to_fetch() {
    if ! wget -q -T 30 -O "$part" "$address"; then
        reason="cannot fetch $address"
        remedy="check the network, set https_proxy to your proxy or MAVEN_URL to a mirror, and run it again, which keeps"
        remedy="$remedy the jars fetched so far"
        return 1
    fi
    if ! echo "$sha256  $part" | sha256sum -c >/dev/null 2>&1; then
        reason="$address: its SHA-256 is not the locked one, $sha256"
        remedy="if the error persists, do not trust the mirror or the proxy that it came from"
        return 1
    fi
}

mkdir -p "$folder"
# Connect runs as another user than this script does in its container.
umask 022
names=
fetched=0
total=0
while read -r coordinate sha256; do
    case $coordinate in '#'* | '') continue ;; esac
    total=$((total + 1))
    group=${coordinate%%:*}
    rest=${coordinate#*:}
    artifact=${rest%%:*}
    version=${rest#*:}
    # group:artifact:version:classifier
    file=$artifact-$(echo "$version" | tr : -).jar
    version=${version%%:*}
    names="$names $file"
    if [ -f "$folder/$file" ] && echo "$sha256  $folder/$file" | sha256sum -c >/dev/null 2>&1; then
        continue
    fi
    # Under another name until its content is checked: Connect loads every file that ends in .jar.
    part=$folder/$file.part
    address=$url/$(echo "$group" | tr . /)/$artifact/$version/$file
    attempt=1
    pause=$first_pause
    while ! attempt_to_fetch; do
        rm -f "$part"
        if [ "$attempt" -ge $attempts ]; then
            echo "error: $reason, in $attempts attempts; $remedy" >&2
            exit 1
        fi
        echo "$reason; trying again in $pause s" >&2
        sleep "$pause"
        attempt=$((attempt + 1))
        pause=$((pause * 2))
    done
    mv "$part" "$folder/$file"
    fetched=$((fetched + 1))
done <"$lock"
# Jars of another version of the lock: two versions of one library in a plugin break it.
for path in "$folder"/*.jar; do
    case " $names " in *" ${path##*/} "*) ;; *) rm -f "$path" ;; esac
done
echo "$folder: $total jars, $fetched of them fetched"
