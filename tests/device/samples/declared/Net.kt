// The declarations of the platform that the Android sample uses, from its documentation, so that a compiler without an SDK can check types.
@file:Suppress("UNUSED_PARAMETER")

package android.net

class Network

class NetworkCapabilities {
    fun hasTransport(transport: Int): Boolean = TODO()

    companion object {
        const val TRANSPORT_CELLULAR = 0
        const val TRANSPORT_WIFI = 1
    }
}

class ConnectivityManager {
    val activeNetwork: Network? get() = TODO()
    fun getNetworkCapabilities(network: Network?): NetworkCapabilities? = TODO()
}
