#!/bin/sh
# init of the small guest. With root= on the command line it mounts that disk and starts its init, else it gives a shell
# without echo and prompt on the console, which the runner drives.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
echo "LAB-INIT $(cut -d' ' -f1 /proc/uptime)"
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
while read -r module; do insmod "/modules/$module" || echo "LAB cannot load $module"; done < /modules/order
root=
for word in $(cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    esac
done
if [ -n "$root" ]; then
    for try in 1 2 3 4 5 6 7 8 9 10; do [ -b "$root" ] && break; sleep 0.5; done
    mkdir -p /newroot
    if mount -t ext4 "$root" /newroot; then
        mount --move /dev /newroot/dev
        umount /sys
        umount /proc
        exec switch_root /newroot /sbin/init
    fi
    echo "LAB cannot mount $root"
fi
mount -t tmpfs tmpfs /tmp
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
ip link set lo up
exec setsid cttyhack /bin/sh /shell.sh
